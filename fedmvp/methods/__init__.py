"""FedMVP and the methods it is compared with, behind one interface, so that none of them has an engine of its own."""
