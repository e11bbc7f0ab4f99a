"""Capturing: finding every linear map and activation of a model, and reducing what flows there."""
