"""What theory predicts of the very layers a snapshot measured."""

from shiftscope.prediction.depth import DepthPrediction, predict_depth

__all__ = ["DepthPrediction", "predict_depth"]
