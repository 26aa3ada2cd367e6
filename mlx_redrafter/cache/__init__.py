"""What a sequence leaves in a model, and how it is taken back."""
