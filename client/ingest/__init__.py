"""From a hospital's folder of DICOM files or photographs to a frozen, patient-indexed Cohort (cohort.py)."""
