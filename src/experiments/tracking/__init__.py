"""Where runs are recorded: the only package that knows MLflow."""
