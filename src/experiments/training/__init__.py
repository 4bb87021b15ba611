"""One training, from a built model to its evaluation; knows neither Hydra nor MLflow."""
