"""Decoding with recurrent depth: iterations of every row are its own."""
