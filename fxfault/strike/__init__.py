"""Turns the words of an armed site into faulty words.

An activation, a weight or a bias takes this path outside compiled code:

    fxfault.functional.fault_inject    takes the word that the layer has handed over
    moments.moment_of                  says whether the site is armed, and which draws it uses
    strikes.strike_values              strikes with each fault of the plan; handles gradients
        plan.plan_of                   gives the plan; makes a new one only after a change
    fxfault.faults.kernels.strike      draws, reads, corrupts and writes in one compiled loop

The loop does not support other devices, a user's own fault models or exact numbers of faults.
For these, `draws` draws the hits and torch writes them. `calls` and `operators` serve compiled
code.
"""
