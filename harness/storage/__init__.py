"""What lies on the disk: atomic files, stages that are done when their marker says so, records."""
