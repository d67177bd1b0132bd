"""Generated tasks that say how many sequential steps each example needs."""
