›±®
«
'
update_1
data

kernel¢done'
gradient_tape/NegNegdata*
T0H
writeAssignSubVariableOpkernelgradient_tape/Neg:y:0*
dtype02
donewrite:e
.

kernel
step"
_generic_user_object
:2kernel
2

update_1
update_1