"""Image files to pixels, and pixels to pictures: decoding, masks, heatmaps, drawing."""
