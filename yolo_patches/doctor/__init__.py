"""What `yolo-patches doctor` judges: training arguments, on a data set, on a machine. Knows no upstream."""
