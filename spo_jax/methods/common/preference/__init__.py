"""What methods share that train a judge from labelled pairs of images."""
