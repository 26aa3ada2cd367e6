"""The machine: its BLAS, device, name and files."""
