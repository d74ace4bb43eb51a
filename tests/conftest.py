"""Ray, where tests start it: clusters of their own, alike in what they ask of those who connect."""

import os
import secrets

# A cluster that runs on this machine is none of the tests' business.
os.environ.pop("RAY_ADDRESS", None)
# Ray asks for a token where it is started by `ray.init`, writing one into the home folder, and not where
# `ray.cluster_utils` starts it. A process that has done the first keeps to it: it then refuses what the second's
# servers ask of it, and Ray takes its actors for forgotten ("cancelled before it started"). With a token for both,
# tests of both kinds can share a process.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
