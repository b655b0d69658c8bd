"""The rules that both sides share; it imports neither side, nor Flower, nor pydicom."""
