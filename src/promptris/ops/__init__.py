"""Operations on masks and points that know nothing of the model."""
