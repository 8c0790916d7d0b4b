"""From a picture to its verdict and explanation: engine and maths joined."""
