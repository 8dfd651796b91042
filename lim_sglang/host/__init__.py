"""What SGLang offers, what is refused, and how a launch is judged."""
