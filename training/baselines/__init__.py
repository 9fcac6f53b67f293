"""What every model has to beat, one file each."""
