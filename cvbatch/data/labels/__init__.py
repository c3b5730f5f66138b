"""Ground truth in: class folders, Pascal VOC, COCO, trimaps, predictions → labelled Parquet."""
