"""The proof: how close every framework comes to float64 (`xent compare`, the tests), and `xent doctor`. No loss needs it."""
