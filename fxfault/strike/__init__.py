"""From an armed site and the word of its activation to the faulty word.

The way of one activation, outside compiled code:

    fxfault.functional.fault_inject    takes the word that the layer has handed over
    moments.moment_of                  whether the site is armed, and what its faults follow from
    strikes.strike_values              strikes with each fault of the plan, and sees to gradients
        plan.plan_of                   the plan: as before, or made anew where something changed
    fxfault.faults.kernels.strike      the compiled loop: draws, reads, corrupts and writes

What the loop does not take (other devices, fault models of the user's, exact numbers of faults) is
drawn first (`draws`) and then written by torch. `calls` and `operators` are for compiled code.
"""
