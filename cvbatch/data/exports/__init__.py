"""A result out to other tools: COCO, Pascal VOC, YOLO, FiftyOne."""
