"""What is done with trained models for evidence: tables, pictures and curves."""
