"""What is measured, and which way is better: objectives, measurements, Pareto fronts, hypervolume, predicted memory."""
