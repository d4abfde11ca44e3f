"""The proof: how close every framework comes to float64 (`xent compare`, the tests); the doctor. No loss needs it."""
