"""Registry of mixing methods: a new one is its own file and one line in METHODS."""

from rlmix.classifier.mixing.average import AVERAGE
from rlmix.classifier.mixing.cutmix import CUTMIX
from rlmix.classifier.mixing.fmix import FMIX
from rlmix.classifier.mixing.lamix_saliency import LAMIX_PUZZLEMIX, LAMIX_RMIX
from rlmix.classifier.mixing.manifold import MANIFOLD
from rlmix.classifier.mixing.method import Method
from rlmix.classifier.mixing.mixup import MIXUP
from rlmix.classifier.mixing.puzzlemix import PUZZLEMIX, PUZZLEMIX_NO_TRANSPORT
from rlmix.classifier.mixing.resizemix import RESIZEMIX
from rlmix.classifier.mixing.rmix import RMIX
from rlmix.classifier.mixing.saliencymix import SALIENCYMIX

METHODS = {
    "clean": Method(lambda batch, settings, draw: (batch.images, batch.targets)),
    "mixup": MIXUP,
    "cutmix": CUTMIX,
    "average": AVERAGE,
    "rmix": RMIX,
    "manifold": MANIFOLD,
    "saliencymix": SALIENCYMIX,
    "puzzlemix": PUZZLEMIX,
    "puzzlemix_no_transport": PUZZLEMIX_NO_TRANSPORT,
    "lamix_rmix": LAMIX_RMIX,
    "lamix_puzzlemix": LAMIX_PUZZLEMIX,
    "fmix": FMIX,
    "resizemix": RESIZEMIX,
}
