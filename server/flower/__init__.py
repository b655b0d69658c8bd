"""Runs Flower's stock SuperLink as child processes; it decides nothing about privacy."""
