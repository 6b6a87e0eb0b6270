"""The VoicePrivacy Challenge's toolkits: their sets, their checkouts, and what is installed into one."""
