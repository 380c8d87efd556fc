"""What Ultralytics does wrong in some of its releases: one file each, found here by the adapter."""
