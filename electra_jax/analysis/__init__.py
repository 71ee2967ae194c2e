"""What a step costs: model FLOPs and hardware peaks, one formula each."""
