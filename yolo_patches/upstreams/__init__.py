"""One adapter per upstream: it turns upstream's internals into seams and decides no value."""
