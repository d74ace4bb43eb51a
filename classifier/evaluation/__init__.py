"""Evaluation of a trained classifier, beyond its accuracy.

network = PixelNetwork(model, last_layer="head", mean=(0.5,), std=(0.25,))
predictions = predict(network, [(images, labels)])
print(accuracy(predictions.logits, predictions.labels), calibration(predictions.logits, predictions.labels))

Everything is measured in float32 on a `PixelNetwork`, which takes pixels in [0, 1]. Libraries beyond this project's
dependencies are imported when they are first used; `pip install 'rl-mix[evaluation]'` installs them.
"""

from rlmix.classifier.evaluation.accuracy import Accuracy, Calibration, accuracy, calibration
from rlmix.classifier.evaluation.attacks import ATTACKS, adversarial, attacked_accuracy
from rlmix.classifier.evaluation.boxes import BoxedImages, load_boxed_folder, on_canvas
from rlmix.classifier.evaluation.corruptions import CORRUPTIONS, corrupt, corrupted_accuracy
from rlmix.classifier.evaluation.embeddings import Distances, class_distances
from rlmix.classifier.evaluation.label_check import LabelStats, check_labels, label_stats
from rlmix.classifier.evaluation.localisation import Localisation, localise
from rlmix.classifier.evaluation.network import PixelNetwork, Predictions, load_weights, predict, trained_network

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "Accuracy",
    "BoxedImages",
    "Calibration",
    "Distances",
    "LabelStats",
    "Localisation",
    "PixelNetwork",
    "Predictions",
    "accuracy",
    "adversarial",
    "attacked_accuracy",
    "calibration",
    "check_labels",
    "class_distances",
    "corrupt",
    "corrupted_accuracy",
    "label_stats",
    "load_boxed_folder",
    "load_weights",
    "localise",
    "on_canvas",
    "predict",
    "trained_network",
]
