import numpy as np

rng = np.random.default_rng(3)
X = rng.normal(size=(3, 4))
X[0] = 0  # ties, where the derivative of a maximum is no help
Y = np.array([1, 0, 3])
T = rng.dirichlet(np.ones(4), 3)
Z = rng.random((3, 4))
W = np.array([0.5, 0.0, 2.0])
