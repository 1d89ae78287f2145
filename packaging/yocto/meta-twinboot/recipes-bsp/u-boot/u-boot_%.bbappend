inherit_defer ${@bb.utils.contains('DISTRO_FEATURES', 'twinboot', 'twinboot_u_boot', '', d)}
