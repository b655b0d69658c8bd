"""The rules that both sides share: errors, configuration, the study plan, messages, signatures, privacy and models."""
