"""Parts of what makes a training sample, with upstream's results to the last bit: plain NumPy and OpenCV."""
