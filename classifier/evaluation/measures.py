"""Registry of the measures of a trained network; a new one is a file with its `Measure`, and a line here."""

from rlmix.classifier.evaluation.accuracy import ACCURACY
from rlmix.classifier.evaluation.attacks import UNDER_ATTACK
from rlmix.classifier.evaluation.corruptions import UNDER_CORRUPTION
from rlmix.classifier.evaluation.embeddings import EMBEDDINGS
from rlmix.classifier.evaluation.localisation import LOCALISATION
from rlmix.classifier.evaluation.measure import Measure

MEASURES: dict[str, Measure] = {
    "accuracy": ACCURACY,
    "attacks": UNDER_ATTACK,
    "corruptions": UNDER_CORRUPTION,
    "embeddings": EMBEDDINGS,
    "localisation": LOCALISATION,
}
