"""`nrd_trt.selftest`: what a GPU proves of this toolkit, from an installed package."""
