"""Object detection and instance segmentation: Mask R-CNN on COCO's layout."""
