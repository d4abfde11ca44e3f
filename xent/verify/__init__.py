"""The proof: how close every installed framework comes to float64 (`xent compare`, the tests). No loss needs it."""
