"""`cvbatch export`: convert a result to COCO, Pascal VOC, YOLO or FiftyOne."""
