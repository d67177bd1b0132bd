"""Data of your own: tables, arrays and folders of images."""
