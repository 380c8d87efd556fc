"""The parts of a validation beside its model, each with the result of upstream's own and at less cost."""
