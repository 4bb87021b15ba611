"""Uses a trained model: predict, export, register, and a page to draw on."""
