"""The operator's configuration, sites, certificates and plans; it never computes on images."""
