"""A transfer-learning retraining pipeline: folders of labelled photos and a pretrained network become a classifier.

``luigi --module pipeline Export --data flowers`` runs it. Nothing slow is imported here, TensorFlow least of all.
"""

from pipeline.root import Export
from pipeline.schedule import Retrain, RetrainAll
from pipeline.tasks import ComputeBottlenecks, DownloadModel, ExportGraph, FetchImages, Gate, IndexImages, Report, TrainFinalLayer

__all__ = [
    "ComputeBottlenecks",
    "DownloadModel",
    "Export",
    "ExportGraph",
    "FetchImages",
    "Gate",
    "IndexImages",
    "Report",
    "Retrain",
    "RetrainAll",
    "TrainFinalLayer",
]
