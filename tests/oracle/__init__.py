"""The oracle: what the service must answer, computed in the most naive way."""
