"""Write a recipe for images and labels: find the files, survey the labels, choose split and training."""
