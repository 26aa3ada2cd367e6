"""An mlx-lm model that verifies draft trees."""
