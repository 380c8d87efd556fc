"""YOLOv9 and YOLOv5: trainers that are scripts. What they import is wrapped, before they import it."""
